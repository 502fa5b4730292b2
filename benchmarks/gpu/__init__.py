"""Everything that is measured on a GPU machine, in one command."""
