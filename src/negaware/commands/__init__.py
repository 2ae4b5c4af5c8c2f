"""The commands of the command line, a file each. A command imports heavy packages only when it runs."""
