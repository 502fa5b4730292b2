"""The arguments of the verbs that have many."""
