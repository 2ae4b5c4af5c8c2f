"""The objectives inside other people's trainers. Each module needs its host library and nothing else of ours."""
