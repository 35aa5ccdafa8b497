"""What every room stands on: the errors, atomic files, settings that refuse what they do not know, lazy names."""
