"""2. Items to semantic ids (SIDs), and back."""
