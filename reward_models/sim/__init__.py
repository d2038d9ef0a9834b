"""SIM, search-based interest model (Pi et al. 2020, arXiv:2006.05639), as a reward model."""
