"""What the accuracy tables are made of: systems, the cells that fit and ask them, and the numbers."""
