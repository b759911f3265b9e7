"""A module of a user that cannot be loaded."""

raise RuntimeError("no license")
