"""Run directories: files, locks, events, the summary, and the bytes that were sent."""
