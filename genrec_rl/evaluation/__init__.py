"""8. Policies and test pages to a report."""
