"""What every room stands on: errors, atomic files, output folders, rows of files, settings that refuse, lazy names."""
