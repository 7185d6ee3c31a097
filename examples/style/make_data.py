"""Make the style example: five chapters of Jane Austen's "Persuasion" (1818), four to train on and one to test, and four
of Herman Melville's "Moby-Dick" (1851), which show how far another author is.

    apt-get download r-cran-janeaustenr r-cran-tokenizers        (Debian; any machine can unpack them, R is not needed)
    python make_data.py r-cran-janeaustenr_1.0.0-1_all.deb r-cran-tokenizers_0.3.0-1_amd64.deb

How the novel is wrapped, outside in:

    .deb              an `ar` archive: 8 bytes "!<arch>", then members with a 60-byte header each
    data.tar.xz       the member that holds the files
    Rdata.rdb         records, one for each novel: 4 bytes length, then zlib of an R object
    R object          31 bytes of header (format, encoding, vector of strings, count), then the lines of the novel,
                      each as 4 bytes flags, 4 bytes length, text

The other package holds its novel as one text, with the header and licence of the edition around it, which are left out.
Other releases of Debian may build a package anew, so it is the novels' own SHA-256 that is checked, not the .deb's.
"""

import hashlib
import io
import re
import struct
import sys
import tarfile
import zlib
from pathlib import Path

RDATA = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
COPYRIGHT = "./usr/share/doc/r-cran-janeaustenr/copyright"
NOVEL_SHA256 = "726513a6c18bb678427bcbcf7c72d0d20816a67c25b0471b26ddcabf3ebac140"
MELVILLE_RDATA = "./usr/lib/R/site-library/tokenizers/data/Rdata.rdb"
MELVILLE_CHAPTERS = 4
MELVILLE_SHA256 = "c0d46512559d2d8cf20dc679c0413d00fff2bb8435df16029ca2e4f1b426ef06"
OPENING = "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who,"
DATA = Path(__file__).parent / "data"
CHAPTERS = {1: "train", 2: "train", 3: "train", 4: "train", 5: "test"}
LICENSE = """\
"Persuasion" by Jane Austen (1775-1817), first published in December 1817 (dated 1818), is in the public domain.
Taken from the Debian package r-cran-janeaustenr, whose copyright file says of the package: {package}
"Moby-Dick" by Herman Melville (1819-1891), first published in 1851, is in the public domain (other/moby_dick.txt).
Taken from the Debian package r-cran-tokenizers, whose copyright file says of the package: Copyright: 2016-2018 Lincoln
Mullen, Os Keyes, Dmitriy Selivanov, Jeffrey Arnold, Kenneth Benoit. License: MIT.
"""


def ar_member(archive, wanted):
    """The contents of the first member of an `ar` archive whose name begins with `wanted`."""
    assert archive.startswith(b"!<arch>\n"), "not a .deb file"
    at = 8
    while at < len(archive):
        name, size = archive[at : at + 16].decode(), int(archive[at + 48 : at + 58])
        if name.startswith(wanted):
            return archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2  # members start at even offsets
    raise ValueError(f"no member {wanted} in the .deb")


def novels(rdata):
    """Each record of an R database of character vectors, as a list of lines."""
    while rdata:
        record = zlib.decompressobj()
        data = record.decompress(rdata[4:])
        assert len(data) == struct.unpack(">i", rdata[:4])[0], "record length does not match"
        rdata = record.unused_data
        lines, at = [], 31
        while at < len(data):
            _, size = struct.unpack(">ii", data[at : at + 8])
            lines.append(data[at + 8 : at + 8 + size].decode())
            at += 8 + size
        yield lines


def chapters(lines):
    """Chapter number -> text, from its "Chapter N" heading up to the next one, wrapped as in the source."""
    parts = re.split(r"(?m)^(?=Chapter \d+$)", "\n".join(lines))
    return {number: part.rstrip() + "\n" for number, part in enumerate(parts) if number}


def unpacked(package, *names):
    """Files of a .deb, by their names in it."""
    with tarfile.open(fileobj=io.BytesIO(ar_member(Path(package).read_bytes(), "data.tar.xz"))) as files:
        return [files.extractfile(name).read() for name in names]


def moby_dick(rdata):
    """The first chapters, from "CHAPTER 1. Loomings." on; before them stand the edition's own words."""
    text = zlib.decompress(rdata[4:]).decode(errors="ignore").replace("\r\n", "\n")
    parts = re.split(r"(?m)^(?=CHAPTER \d+\.)", text)[1 : MELVILLE_CHAPTERS + 1]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    rdata, copyright_file = unpacked(sys.argv[1], RDATA, COPYRIGHT)
    novel = next(lines for lines in novels(rdata) if OPENING in lines[:20])
    assert novel[0] == "Persuasion", f"expected Persuasion, found {novel[0]}"
    digest = hashlib.sha256("\n".join(novel).encode()).hexdigest()
    if digest != NOVEL_SHA256:
        sys.exit(f"{sys.argv[1]}: another text of the novel (SHA-256 {digest}, should be {NOVEL_SHA256})")

    texts = chapters(novel)
    assert texts[1].split("\n")[3] == OPENING, "chapter 1 does not begin with the novel's opening words"
    for number, side in CHAPTERS.items():
        path = DATA / side / f"chapter_{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(texts[number].encode())
        print(f"{side + '/' + path.name:<21} {len(texts[number].split()):>6,} words {len(texts[number]):>7,} chars")
    other = moby_dick(*unpacked(sys.argv[2], MELVILLE_RDATA))
    digest = hashlib.sha256(other.encode()).hexdigest()
    if digest != MELVILLE_SHA256:
        sys.exit(f"{sys.argv[2]}: another text of these chapters (SHA-256 {digest}, should be {MELVILLE_SHA256})")
    (DATA / "other").mkdir(exist_ok=True)
    (DATA / "other/moby_dick.txt").write_bytes(other.encode())
    print(f"{'other/moby_dick.txt':<21} {len(other.split()):>6,} words {len(other):>7,} chars")
    holder, licence = re.search(rb"Files: \*\nCopyright: (.*)\nLicense: (.*)", copyright_file).groups()
    statement = f"Copyright: {holder.decode()}. License: {licence.decode()}."
    (DATA / "LICENSE.txt").write_bytes(LICENSE.format(package=statement).encode())


if __name__ == "__main__":
    main()
