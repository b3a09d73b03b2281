"""Images in: reading, datasets, preprocessing, augmentation and the loader."""
