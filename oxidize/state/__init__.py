"""Session state that outlives its process: the journal and the counter arena."""
