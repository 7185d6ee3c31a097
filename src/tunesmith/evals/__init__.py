"""Before and after, on the same held-out rows, with intervals; a report for people and one for machines."""
