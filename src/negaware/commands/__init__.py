"""The commands of the command line, a file each; what is heavy they import when they run."""
