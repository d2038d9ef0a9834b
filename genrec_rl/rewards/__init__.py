"""6. What a rollout is worth: rules only, no model."""
