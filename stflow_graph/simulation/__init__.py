"""A cohort of drawn slides whose truth is known."""
