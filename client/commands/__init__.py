"""The commands of `isthmus-client`, a file for each group."""
