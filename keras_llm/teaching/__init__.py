"""What compile decided, and one step slowly: `explain`, `trace`, `plots`."""
