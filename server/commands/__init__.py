"""The commands of `isthmus-server`, a file for each group."""
