"""The known formats, and the choice among them for a source."""

from collections.abc import Mapping

from lightning_mmrl.data.formats.readers.benchmark_columns import COLUMNS
from lightning_mmrl.data.formats.readers.canonical import CANONICAL
from lightning_mmrl.data.formats.readers.csv_table import CSV
from lightning_mmrl.data.formats.readers.cv_bench import CV_BENCH
from lightning_mmrl.data.formats.readers.geometry3k import GEOMETRY3K
from lightning_mmrl.data.formats.readers.hugging_face import HUGGING_FACE
from lightning_mmrl.data.formats.readers.llama_factory import LLAMA_FACTORY
from lightning_mmrl.data.formats.readers.llava import LLAVA
from lightning_mmrl.data.formats.readers.lmm_r1 import LMM_R1
from lightning_mmrl.data.formats.readers.math_vision import MATH_VISION
from lightning_mmrl.data.formats.readers.mathverse import MATHVERSE
from lightning_mmrl.data.formats.readers.mathvista import MATHVISTA
from lightning_mmrl.data.formats.readers.mm_eureka import MM_EUREKA
from lightning_mmrl.data.formats.readers.mme_emotion import MME_EMOTION
from lightning_mmrl.data.formats.readers.mmmu import MMMU
from lightning_mmrl.data.formats.readers.ms_swift import MS_SWIFT
from lightning_mmrl.data.formats.readers.protocol import Reader
from lightning_mmrl.data.formats.readers.sat import SAT, SAT_CIRCULAR
from lightning_mmrl.data.formats.readers.verl import VERL
from lightning_mmrl.data.formats.readers.vision_r1_cold import VISION_R1_COLD
from lightning_mmrl.data.formats.readers.we_math import WE_MATH
from lightning_mmrl.data.formats.storage import Parts, peek
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.suggestions import did_you_mean

AUTO = "auto"
READERS: Mapping[str, Reader] = {
    reader.name: reader
    for reader in (
        CANONICAL,
        MS_SWIFT,
        LLAMA_FACTORY,
        LLAVA,
        VERL,
        HUGGING_FACE,
        MM_EUREKA,
        LMM_R1,
        VISION_R1_COLD,
        SAT,
        SAT_CIRCULAR,
        GEOMETRY3K,
        MATHVISTA,
        MATHVERSE,
        MATH_VISION,
        MMMU,
        WE_MATH,
        CV_BENCH,
        MME_EMOTION,
        CSV,
    )
}
FORMATS = (AUTO, *READERS)


def reader_of(parts: Parts, name: str = AUTO) -> Reader:
    """The reader with a name, or the one that recognises the beginning of a source.

    Raises:
        ConfigError: There is no such format.
        DataError: No format fits, several do, or a file cannot be read.
    """
    if name != AUTO:
        if name not in READERS:
            raise ConfigError(f"format is {name!r}, which is no format{did_you_mean(name, FORMATS)}")
        return READERS[name]
    start = peek(parts.files[0])
    fitting = [reader for reader in READERS.values() if reader.recognises(start)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and start.storage == "lines":
        return CANONICAL  # its errors name the line and the column that is missing
    columns = ", ".join(map(quoted, list(start.row)[:12])) or "no columns"
    if not fitting:
        benchmarks = [*COLUMNS, SAT_CIRCULAR.name]
        known = "; ".join(f"{name} ({reader.layout})" for name, reader in READERS.items() if name not in benchmarks)
        raise DataError(
            f"{start.path} has no known format (found {columns}); known are {known}; and for benchmarks "
            f"{', '.join(benchmarks)}"
        )
    names = " and ".join(reader.name for reader in fitting)
    raise DataError(
        f"{start.path} fits the formats {names} (found {columns}); say which one by format, such as "
        f"format={fitting[0].name}"
    )
