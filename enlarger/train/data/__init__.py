"""Pictures with captions, from a folder or from WebDataset shards, as batches for the training loop."""

from enlarger.train.data.dataset import DataOptions, Dataset, TrainingBatch, open_dataset

__all__ = ["DataOptions", "Dataset", "TrainingBatch", "open_dataset"]
