"""The page of an evaluation, drawn from its record and its report data alone."""
