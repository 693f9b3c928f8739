"""Ranged downloads: concurrent, resumable, verified; and the same bytes in order while they arrive."""

from wme_async._download.budget import Budget
from wme_async._download.download import download
from wme_async._download.reader import ContentReader, open_content
from wme_async._download.source import Checksum, Download, FileInfo, Progress, ProgressHook, SignedUrl, Source

__all__ = [
    "Budget",
    "Checksum",
    "ContentReader",
    "Download",
    "FileInfo",
    "Progress",
    "ProgressHook",
    "SignedUrl",
    "Source",
    "download",
    "open_content",
]
