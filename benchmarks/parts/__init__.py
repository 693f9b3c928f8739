"""What is measured, part by part. Each has a function that says which groups of cases it consists of."""
