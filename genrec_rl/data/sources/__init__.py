"""Public data sets, brought to the data contract."""
