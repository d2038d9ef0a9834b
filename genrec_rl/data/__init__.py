"""1. Logs to pages to examples."""
