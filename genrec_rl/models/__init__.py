"""3. The policy, and the language it reads."""
