"""A domain's XML as text that can be edited in places: what is not touched stays byte for byte.

Serialising a parsed document anew would change quoting, white space and the place of namespace
declarations of everything in it. So the document stays what it is, a sequence of bytes; the parser
only says where each element begins and ends.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from linkmgr.errors import CannotPrepare

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"  #: of qemu:commandline and qemu:override

# A domain's author writes what he likes into it, and the service reads it in its event loop. These
# bounds keep that under 0.1 s (measured: 2.5 us for an element, 1.3 us for an attribute); each is
# far above what a machine with hundreds of NICs and disks needs.
MAX_BYTES = 1 << 20  #: of a document; one with 256 NICs has 150,000
MAX_ELEMENTS = 10_000  #: of a document; a NIC has 8
MAX_ATTRIBUTES = 20_000  #: of a document, counted by its ``=``, before the parser collects them
MAX_DEPTH = 256  #: levels of elements, as libxml2 has it
MAX_NAMESPACE = 512  #: characters of a namespace's URI, which stands in the name of each element

#: An element to be written: lines, each with its depth below the element that it goes into.
Lines = Sequence[tuple[int, str]]

#: Bytes from a place to a place, and what is to be there instead.
Edit = tuple[int, int, bytes]

_TAG_END = re.compile(rb"""(?:[^>'"]++|'[^']*'|"[^"]*")*+>""")
_TAG_NAME = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*('[^']*'|"[^"]*")""")
_COMMENT_BEHIND = re.compile(rb"[ \t]*<!--[^\r\n]*?-->")  # on the same line


@dataclass(eq=False, slots=True)
class Element:
    """An element, and where it lies in the document, in bytes.

    :param name: ``local``, or ``{namespace}local``.
    :param prefix: as it is written, with its colon: ``qemu:``.
    :param start: of its start tag.
    :param inner: the end of its start tag.
    :param outer: the start of its end tag; `inner` when it has none.
    :param end: of all of it.
    :param text: character data directly in it.
    """

    name: str
    prefix: str
    attributes: dict[str, str]
    start: int
    inner: int
    outer: int = -1
    end: int = -1
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, name: str) -> Element | None:
        """The first child of that name."""
        return next((child for child in self.children if child.name == name), None)

    def get(self, path: str, attribute: str) -> str:
        """An attribute of the first element under a path such as ``target/host``; else empty."""
        here: Element | None = self
        for name in path.split("/"):
            here = here.find(name) if here else None
        return here.attributes.get(attribute, "") if here else ""

    def walk(self) -> Iterator[Element]:
        """This element and all below, in the document's order."""
        coming = [self]
        while coming:
            here = coming.pop()
            yield here
            coming += reversed(here.children)

    def meaning(self) -> object:
        """What it says, however it is written: comparable."""
        return (
            self.name,
            sorted(self.attributes.items()),
            self.text.strip(),
            [child.meaning() for child in self.children],
        )


@dataclass(frozen=True)
class Layout:
    """How a document is laid out, so that a part of it is written in the same way.

    :param margin: blanks before its first line.
    :param unit: how a level is indented; ``None`` when all is on one line.
    """

    newline: bytes
    margin: bytes
    unit: bytes | None


class Document:
    """A document. It does not change: each edit returns another one.

    :param source: UTF-8.
    :param layout: of the document that it is a part of.
    :raise CannotPrepare: not well-formed, beyond one of the bounds above, in another encoding, or
        with a document type, which is where entities and references to other files come from.
    """

    def __init__(self, source: bytes, *, layout: Layout | None = None) -> None:
        if len(source) > MAX_BYTES:
            _refuse(f"the XML is longer than {MAX_BYTES} bytes")
        if source.count(b"=") > MAX_ATTRIBUTES:
            _refuse(f"the XML has more than {MAX_ATTRIBUTES} attributes, or signs (=) of them")
        if b"\0" in source:  # the parser would take it for UTF-16, whatever it is told
            _refuse("the XML is not in UTF-8, and nothing else is read", "convert it: iconv(1)")
        self.source = source
        self._layout = layout
        self.newline = layout.newline if layout else b"\r\n" if b"\r\n" in source else b"\n"
        reader = _Reader(source)
        self.root = reader.read()
        self.prefixes = reader.prefixes  # namespace -> prefix, as the root declares them

    def part(self, element: Element) -> Document:
        """An element as a document of its own, which is edited in this one's way to indent."""
        layout = Layout(self.newline, self._indent(element), self._unit())
        return Document(self.text(element), layout=layout)

    # --- edits ------------------------------------------------------------------------------------
    def edited(self, *edits: Edit) -> Document:
        """Make edits all at once: each costs nothing beside reading the document anew.

        :param edits: of this document, none of which overlaps another one.
        """
        if not edits:
            return self
        parts, at = [], 0
        for start, end, new in sorted(edits, key=lambda each: each[:2]):
            parts += [self.source[at:start], new]
            at = end
        try:
            return Document(b"".join([*parts, self.source[at:]]), layout=self._layout)
        except CannotPrepare as error:
            raise CannotPrepare(
                f"what would come of it cannot be read: {error.what}", hint=error.hint
            ) from error

    def replacement(self, element: Element, new: bytes) -> Edit:
        """Put `new` in an element's place."""
        return element.start, element.end, new

    def removal(self, element: Element) -> Edit:
        """Remove an element, and its line if it begins one."""
        begin = self._line_before(element.start)
        return element.start if begin is None else begin, element.end, b""

    def pruning(self, element: Element, gone: Collection[Element]) -> list[Edit]:
        """Remove what goes of all that is below an element, and itself if nothing is left in it."""
        begins = [element.inner, *(child.end for child in element.children)]
        ends = [*(child.start for child in element.children), element.outer]
        left = any(self.source[a:b].strip() for a, b in zip(begins, ends, strict=True))
        if not left and all(child in gone for child in element.children):
            return [self.removal(element)]
        found, coming = [], list(element.children)
        while coming:
            here = coming.pop()
            if here in gone:
                found.append(self.removal(here))
            else:
                coming += here.children
        return found

    def addition(self, parent: Element, lines: Lines) -> Edit:
        """Add an element behind everything in `parent`, in the document's own way to indent."""
        before = self._indent(parent)
        made = b"".join(self._line(before, depth + 1, text) for depth, text in lines)
        if parent.inner == parent.end:  # <parent/>: give it an end tag
            tag = re.sub(rb"\s*/>\Z", b">", self.text(parent))
            name = _TAG_NAME.match(tag)
            assert name is not None
            close = self._line(before, 0, f"</{name[0][1:].decode()}>")
            return self.replacement(parent, tag + made + close)
        held = self.source[parent.inner : parent.outer].rstrip(b" \t\r\n")
        at = parent.inner + len(held)
        if at == parent.outer:  # <parent></parent>, or the end tag right behind the last child
            made += self._line(before, 0, "") if not held else b""
        return at, at, made

    def replace(self, element: Element, new: bytes) -> Document:
        """As `replacement`."""
        return self.edited(self.replacement(element, new))

    def remove(self, element: Element) -> Document:
        """As `removal`."""
        return self.edited(self.removal(element))

    def append(self, parent: Element, lines: Lines) -> Document:
        """As `addition`."""
        return self.edited(self.addition(parent, lines))

    def insert_after(self, element: Element, lines: Lines) -> Document:
        """Add an element behind one of the root's children, and what is said of that one."""
        before = self._indent(self.root)
        made = b"".join(self._line(before, depth + 1, text) for depth, text in lines)
        comment = _COMMENT_BEHIND.match(self.source, element.end)
        at = comment.end() if comment else element.end
        return self.edited((at, at, made))

    def set_attribute(self, element: Element, name: str, value: str) -> Document:
        """Change or add an attribute. The quotes stay as they are."""
        place = self._attribute(element, name)
        if isinstance(place, int):
            return self.edited((place, place, f" {name}={quoted(value)}".encode()))
        quote = place[2][:1]
        return self.edited((place.start(2), place.end(2), quote + _escaped(value).encode() + quote))

    def drop_attribute(self, element: Element, name: str) -> Document:
        """Remove an attribute, if it is there."""
        place = self._attribute(element, name)
        return self if isinstance(place, int) else self.edited((place.start(), place.end(), b""))

    def _attribute(self, element: Element, name: str) -> re.Match[bytes] | int:
        """Where an attribute is written, with the space before it, or else where it could be."""
        tag = _TAG_NAME.match(self.source, element.start)
        assert tag is not None
        at = tag.end()
        while found := _ATTRIBUTE.match(self.source, at, element.inner):
            if found[1] == name.encode():
                return found
            at = found.end()
        return at

    def text(self, element: Element) -> bytes:
        """An element as it is written."""
        return self.source[element.start : element.end]

    # --- white space ------------------------------------------------------------------------------
    def _unit(self) -> bytes | None:
        """How a level is indented; ``None`` when all is on one line."""
        if self._layout is not None:
            return self._layout.unit
        first = self.root.children[0] if self.root.children else None
        begin = self._line_before(first.start) if first else None
        if first is None or begin is None or begin < self.root.inner:
            return None
        line = self.source[begin : first.start]
        return line.lstrip(b"\r\n").removeprefix(self._indent(self.root))

    def _indent(self, element: Element) -> bytes:
        if self._layout is not None and element is self.root:
            return self._layout.margin
        begin = self._line_before(element.start)
        return b"" if begin is None else self.source[begin : element.start].lstrip(b"\r\n")

    def _line_before(self, at: int) -> int | None:
        """Where the end of line lies behind which only blanks are before a place."""
        begin = at
        while self.source[begin - 1 : begin] in (b" ", b"\t"):
            begin -= 1
        if self.source[begin - 1 : begin] != b"\n":
            return None
        return begin - 2 if self.source[begin - 2 : begin - 1] == b"\r" else begin - 1

    def _line(self, before: bytes, depth: int, text: str) -> bytes:
        unit = self._unit()
        space = b"" if unit is None else self.newline + before + unit * depth
        return space + text.encode()


class _Reader:
    """Reads a document with expat, within the bounds.

    :param prefixes: of each namespace, as the root declares them.
    """

    def __init__(self, source: bytes) -> None:
        self.prefixes: dict[str, str] = {}
        self._source = source
        self._names: dict[str, tuple[str, str]] = {}  # which repeat
        self._open: list[Element] = []
        self._texts: list[list[str]] = []  # of each open element, in pieces
        self._begun = 0
        self._root: Element | None = None

    def read(self) -> Element:
        """The root. Call it once.

        :raise CannotPrepare: see `Document`.
        """
        self._parser = parser = expat.ParserCreate("UTF-8", namespace_separator=" ")
        parser.namespace_prefixes = True
        parser.ordered_attributes = False
        parser.buffer_text = True
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._finish
        parser.StartNamespaceDeclHandler = self._declare
        parser.CharacterDataHandler = self._characters
        parser.XmlDeclHandler = self._declared
        parser.StartDoctypeDeclHandler = self._doctype
        try:
            parser.Parse(self._source, True)
        except expat.ExpatError as error:
            _refuse(f"this is not XML: {error}", "look at it with xmllint")
        finally:
            del self._parser  # which holds this: such a ring would keep the document for a while
        assert self._root is not None
        return self._root

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self._begun += 1
        if self._begun > MAX_ELEMENTS:
            _refuse(f"the XML has more than {MAX_ELEMENTS} elements")
        if len(self._open) >= MAX_DEPTH:
            _refuse(f"the XML is nested more than {MAX_DEPTH} levels deep")
        start = self._parser.CurrentByteIndex
        tag = _TAG_END.match(self._source, start)
        assert tag is not None
        known = self._names.get(name)
        full, prefix = known or self._names.setdefault(name, _name(name))
        if " " in "".join(attributes):  # few have a namespace
            attributes = {_name(key)[0]: value for key, value in attributes.items()}
        element = Element(full, prefix, attributes, start, tag.end())
        if self._open:
            self._open[-1].children.append(element)
        self._root = self._root or element
        self._open.append(element)
        self._texts.append([])

    def _finish(self, _: str) -> None:
        element = self._open.pop()
        element.text = "".join(self._texts.pop())
        if self._source[element.inner - 2 : element.inner] == b"/>":
            element.outer = element.end = element.inner
        else:
            element.outer = self._parser.CurrentByteIndex
            element.end = self._source.index(b">", element.outer) + 1

    def _declare(self, prefix: str | None, uri: str | None) -> None:
        if uri and len(uri) > MAX_NAMESPACE:
            _refuse(f"the XML has a namespace longer than {MAX_NAMESPACE} characters")
        if self._root is None and prefix and uri:
            self.prefixes.setdefault(uri, f"{prefix}:")

    def _characters(self, data: str) -> None:
        if self._texts:
            self._texts[-1].append(data)

    @staticmethod
    def _declared(_version: str, encoding: str | None, _standalone: int) -> None:
        if encoding and encoding.upper() not in ("UTF-8", "US-ASCII", "ASCII"):
            _refuse(
                f"the XML is in {encoding[:40]}, and only UTF-8 is read", "convert it: iconv(1)"
            )

    @staticmethod
    def _doctype(*_: object) -> None:
        _refuse(
            "the XML has a document type (<!DOCTYPE>), which no domain needs and which could "
            "bring entities in",
            "remove it",
        )


def quoted(value: str) -> str:
    """A value of an attribute, in the quotes that libvirt uses."""
    return f"'{_escaped(value)}'"


def cdata(text: str) -> str:
    """Text as a CDATA section, which keeps it legible."""
    return f"<![CDATA[{text.replace(']]>', ']]]]><![CDATA[>')}]]>"


def character_data(text: str) -> str:
    """Text as it is, carriage returns included, which would be line ends in a CDATA section."""
    return _escaped(text).replace(">", "&gt;").replace("\r", "&#13;")


def _escaped(value: str) -> str:
    for plain, entity in (("&", "&amp;"), ("<", "&lt;"), ("'", "&apos;"), ('"', "&quot;")):
        value = value.replace(plain, entity)
    return value


def _name(name: str) -> tuple[str, str]:
    """Read expat's ``URI LOCAL PREFIX``: the name, and the prefix as it is written."""
    match name.split(" "):
        case [uri, local, prefix]:
            return f"{{{uri}}}{local}", f"{prefix}:"
        case [uri, local]:
            return f"{{{uri}}}{local}", ""
        case _:
            return name, ""


def _refuse(
    what: str,
    hint: str = "no domain needs as much: look what has grown, its <metadata> or its NICs",
) -> NoReturn:
    raise CannotPrepare(what, hint=hint)
