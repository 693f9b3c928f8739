"""Ranged downloads: concurrent, resumable, verified; and the same bytes in order while they arrive."""

from wme_async._download.budget import Budget
from wme_async._download.download import download
from wme_async._download.options import ContentOptions, DownloadOptions, DownloadSettings, TransferOptions
from wme_async._download.reader import ContentReader, open_content
from wme_async._download.source import Checksum, Download, FileInfo, Progress, ProgressHook, SignedUrl, Source

__all__ = [
    "Budget",
    "Checksum",
    "ContentOptions",
    "ContentReader",
    "Download",
    "DownloadOptions",
    "DownloadSettings",
    "FileInfo",
    "Progress",
    "ProgressHook",
    "SignedUrl",
    "Source",
    "TransferOptions",
    "download",
    "open_content",
]
