"""What a reference database holds, before anything is built of it: numbers, gaps, duplicates, and a map."""
