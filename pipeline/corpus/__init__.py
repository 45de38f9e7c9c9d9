"""From source files to documents: readers, templates, de-duplication, decontamination and splits."""
