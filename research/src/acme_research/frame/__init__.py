"""What all of research shares: scales, pieces on disk, intervals, records, pictures."""
