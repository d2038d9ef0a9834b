"""What RL gains over SFT: the arms that are compared, and how their answers become a table."""
