"""The errors a user can meet, each with a stable code that documentation and logs may rely on.

Library code raises these; only the `core-mri` command turns them into one line on stderr and an
exit code.
"""

from __future__ import annotations

CODES: dict[str, str] = {
    "CONFIG-01": "a configuration holds an unknown key, lacks a key or has a wrong value",
    "CONFIG-02": "a configuration file cannot be found or is not YAML",
    "CONFIG-03": "the output folder is not empty and does not belong to this run",
    "CONFIG-04": "a run was asked to resume with another configuration",
    "CONFIG-05": "settings that are valid alone cannot work together or with this data",
    "CONFIG-06": "an optional package is not installed",
    "DATA-01": "nothing to read: no such path, or an empty folder",
    "DATA-02": "a file is truncated or damaged",
    "DATA-03": "a file is no image of a known format",
    "DATA-04": "voxels are not finite",
    "DATA-05": "an image is constant",
    "DATA-06": "a label value is outside the list of the task",
    "DATA-07": "the disk is full or a path cannot be written",
    "DATA-08": "a registry is missing, damaged or of another schema version",
    "DATA-09": "too few patients, volumes or slices for what was asked",
    "DATA-10": "a file has no pixel data, or pixel data this installation cannot decode",
    "DATA-11": "an identifier survived de-identification",
    "DATA-12": "voxels are random noise, not an image",
    "DATA-13": "a file points at other files, or unpacks to far more than its size allows",
    "DATA-14": "raw data that is not Cartesian, or whose header does not fit its samples",
    "DATA-15": "an index of other files, which is made anew rather than de-identified",
    "DATA-16": "the pixels show text, or may",
    "DATA-17": "a head whose face cannot be removed surely",
    "DATA-18": "a capture, report or document, which is no scan and was not asked for",
    "DATA-19": "not looked at by a person, as a public release needs, or not passed",
    "DATA-20": "a stored volume was lost with its shard; ingesting its files again restores it",
    "DATA-21": "raw data without the fully sampled center that coil maps need",
    "DATA-22": "a patient who was withdrawn from the registry",
    "DATA-23": "a link to shared data that has expired or was revoked",
    "DATA-24": "a link to shared data that was altered, or that nobody here signed",
    "DATA-25": "an agreement that was not accepted in its present version",
    "DATA-26": "an audit log that was altered, or that lacks entries",
    "DATA-27": "a labelled data set contradicts its own list, or its list cannot be read",
    "DATA-28": "the licence of a source is unknown, or does not allow what was asked",
    "DATA-29": "a case lacks a sequence, or has other ones than were told",
    "DATA-30": "another program that was asked for scans or masks failed",
    "DATA-31": "a table of labels is damaged, or gives one example two labels",
    "DATA-32": "an index of public scans is damaged or lacks what a plan needs",
    "DATA-33": "a plan asks for more, or for other scans, than may be chosen",
    "DATA-34": "a stored plan is damaged, or a list of patients cannot be understood",
    "DATA-35": "no test volume shows a structure that prompts could name",
    "DATA-36": "features of two encoders were to be compared",
    "DATA-37": "features are not finite",
    "DATA-38": "weights without statistics of what they saw, or with damaged or other ones",
    "DATA-39": "results from which no gain over a random twin can be told",
    "DATA-40": "a network gave an image that is not finite",
    "DATA-42": "raw data without the fully sampled reference that training by references needs",
    "DATA-43": "a patient's raw data is in two of the lists to train, validate and test on",
    "DATA-46": "an agreement whose acceptance has ended",
    "DATA-47": "more downloads at once than a link may have",
    "DATA-48": "a range outside of a shared file, or a condition on it that does not hold",
    "DATA-49": "a request that the server of shared data does not know",
    "GEOMETRY-01": "voxel spacing is zero, negative or not finite",
    "GEOMETRY-02": "the slices of a series do not form one regular volume",
    "GEOMETRY-03": "two volumes that must share a grid do not",
    "WEIGHTS-01": "a weights folder is missing, incomplete or does not match its hash",
    "WEIGHTS-02": "tensors of a checkpoint do not fit the model",
    "WEIGHTS-03": "no model of that name",
    "WEIGHTS-04": "a checkpoint file is damaged, or holds anything but tensors",
    "WEIGHTS-05": "a checkpoint file is not the one whose SHA-256 was given",
    "WEIGHTS-06": "weights would have to be downloaded, which was not allowed",
    "WEIGHTS-07": "images given to a model are not in [0, 1]",
    "WEIGHTS-08": "a box or a point for weights that have no mask decoder",
    "WEIGHTS-09": "a model takes another number of sequences than were given",
    "WEIGHTS-10": "weights that do not reconstruct, given where k-space is reconstructed",
    "WEIGHTS-11": "an image or channels of another size than a reconstruction network takes",
    "WEIGHTS-12": "k-space of one coil for weights of several, or of several for weights of one",
    "RUN-01": "training diverged",
    "RUN-02": "a worker process failed",
    "RUN-03": "a checkpoint is damaged",
    "RUN-04": "out of memory; the message says the next batch size to try",
    "RUN-06": "an alarm of health stopped the run: it has collapsed",
    "RUN-07": "an alarm of health stopped the run: probes fell below those of its initial weights",
    "RUN-08": "workers do not see the same storage",
    "RUN-09": "two runs write to one place",
    "RUN-10": "the installed torch cannot divide a network in bfloat16",
    "RUN-11": "a network for reconstruction has collapsed: its images ignore the measured samples",
    "SERVE-01": "a token is missing or wrong, or an address would need tokens",
    "SERVE-02": "the data folder of a service is in use, or not private",
    "SERVE-03": "an upload is not what was announced: its offset, size or hash",
    "SERVE-04": "a limit of the service: size, number or rate",
    "SERVE-05": "a job took more memory or time than it may",
    "SERVE-06": "the program that worked on a file was ended, or failed",
    "SERVE-07": "no such job or result for this user, or not in this state",
    "SERVE-08": "a file of a kind that the service does not take",
    "SERVE-09": "a request that the interface does not know",
    "SERVE-10": "a stored upload is damaged",
    "SERVE-50": "no leaderboard of that name in this service",
    "BOARD-01": "no leaderboard, or a damaged one",
    "BOARD-02": "a submission with missing, further or doubled files, or with links",
    "BOARD-03": "a file of a submission of another shape, grid or type, or with values of none",
    "BOARD-04": "a model card that is missing or incomplete, or says that test patients were seen",
    "BOARD-05": "too many submissions of one owner",
    "BOARD-06": "a submission that is equal, or nearly, to an earlier one",
    "BOARD-07": "a submission that repeats hidden references",
    "BOARD-08": "a name that is taken or not allowed",
    "BOARD-09": "references that cannot make a task",
    "SERVE-30": "an MRD message that is out of order, or of a kind that is not taken",
    "SERVE-31": "an MRD stream that ends before it should",
    "SERVE-32": "an MRD configuration that is not known",
    "SERVE-33": "a media type that DICOMweb does not take or give",
    "SERVE-34": "a transfer syntax that is not taken or given",
    "SERVE-35": "DICOM objects of another study than the request names",
    "SERVE-36": "a query for DICOM objects that cannot be understood",
    "SERVE-37": "a multipart body that is damaged",
    "SERVE-70": "Ray Serve did not start the service, or listens at another address already",
    "SERVE-71": "a node of the Ray cluster does not see the data folder, or lacks core-mri",
    "SERVE-72": "the Ray cluster has fewer processors than the service needs",
    "SYNTH-01": "a label map holds values that nobody named",
    "SYNTH-02": "a lesion is larger than the tissue it may lie in",
    "SYNTH-03": "no healthy tissue at the place asked for, or nowhere room enough",
    "SYNTH-04": "voxels are too coarse for the lesion volume asked for",
    "SYNTH-05": "no lesion to change or to take a shape from",
    "SYNTH-06": "a generator was trained on other labels or sequences",
    "SYNTH-07": "generated scans where only scans of patients may be, such as a test split",
    "SYNTH-08": "generated scans that copy a training patient",
}
"""Every code and what it stands for; the tests check that each raised code is listed here."""


class CoreMRIError(Exception):
    """An error with a stable code and, where one is known, what to do next.

    Args:
        code: A key of :data:`CODES`.
        message: What was got and what is allowed, naming the file (or its keyed id) and the values.
        fix: What the user can do next, one sentence.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, *, fix: str = "") -> None:
        self.code = code
        self.message = message
        self.fix = fix
        super().__init__(code, message, fix)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" {self.fix}" if self.fix else "")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.message, self.fix)


def _rebuild(cls: type[CoreMRIError], code: str, message: str, fix: str) -> CoreMRIError:
    return cls(code, message, fix=fix)


class ConfigError(CoreMRIError):
    """A wrong configuration or wrong usage (exit code 2)."""

    exit_code = 2


class DataError(CoreMRIError):
    """Data that cannot be read, is not what it should be, or cannot be written."""


class GeometryError(DataError):
    """Geometry that is impossible or does not match."""


class WeightsError(CoreMRIError):
    """Weights that cannot be found, are damaged or do not fit."""


class RunError(CoreMRIError):
    """A run that failed while it ran: divergence, a lost worker, a damaged checkpoint."""


class ServingError(CoreMRIError):
    """A request that the service refuses, or a job that it could not do."""


class LeaderboardError(CoreMRIError):
    """A submission that a leaderboard refuses, or a leaderboard that cannot be used."""


class Interrupted(CoreMRIError):
    """Ctrl-C or SIGTERM: the checkpoint is kept (exit code 130)."""

    exit_code = 130

    def __init__(self, message: str) -> None:
        super().__init__("INTERRUPTED", message)

    def __reduce__(self) -> tuple[object, ...]:
        return Interrupted, (self.message,)
