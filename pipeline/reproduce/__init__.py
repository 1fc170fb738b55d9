"""The claims of 2012, measured again."""
