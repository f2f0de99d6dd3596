"""Everything expensive in a study: made, kept, measured."""
