"""The common part of all research: scales, pieces on disk, intervals, records, pictures."""
