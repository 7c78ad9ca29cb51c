"""The model as a function of one variable, one file a variable."""
