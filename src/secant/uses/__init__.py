"""Things done with a linearity, one file a use."""
