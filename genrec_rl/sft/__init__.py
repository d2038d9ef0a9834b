"""5. Page-wise supervised fine-tuning."""
