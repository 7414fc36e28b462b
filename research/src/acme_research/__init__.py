"""What the stories of the paper's evaluation share: scales, pieces on disk, results, rivals."""
