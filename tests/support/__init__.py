"""What tests of several rooms share; imported, since a conftest serves its own folder alone."""
