"""What every room needs: atomic files and paths, field checks, device and precision, strict picture loading,
checkpoint reading.

Nothing here knows what a token, a task or a model is. It imports no other room."""
