"""What a run leaves for people: a summary in numbers and a page of pictures."""
