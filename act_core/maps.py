"""The ACT map: all transports of one model, and the record of how they were fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import SupportsFloat

from .blending import Unit, merged_titles, prune, sites_in_order
from .calibration import Calibration
from .comparison import difference
from .errors import MapError
from .levels import as_level, check_levels, nearest
from .records import Card, Evidence, FitRecord
from .settings import as_strength
from .sites import Site, matches
from .text import shorten
from .transport import Transport


@dataclass(frozen=True, eq=False)
class ActMap:
    """Transports by site, in execution order, with their record and card. Maps are never changed in place.

    Attributes:
        transports: the affine map of each site.
        record: how the map was fitted.
        card: what its author says about it.
        calibration: what was measured of it at several strengths, see `act_core.calibrate`.
        any_architecture: whether it may steer a model of another architecture, see `for_any_architecture`. Not saved.
        levels: noise levels of the bins of its transports, noisiest first, see `act_core.levels`; empty if it acts
            alike at all levels. Sites without bins, such as those of text encoders, do so in any map.
        evidence: other effects of it that were measured.

    Raises:
        MapError: an empty map, a transport and its site differ in channels, or its bins are not those of the levels.

    Example:
        >>> site = Site("toy", "layer", None, "tokens", 2)
        >>> act_map = ActMap({site: Transport(torch.full((2,), 2.0), torch.ones(2))})
        >>> act_map
        <ActMap: 1 site of toy, linear, causal>
        >>> act_map.inverse()["toy/layer"].beta
        tensor([-0.5000, -0.5000])
    """

    transports: Mapping[Site, Transport]
    record: FitRecord = field(default_factory=FitRecord)
    card: Card = field(default_factory=Card)
    calibration: Calibration | None = None
    any_architecture: bool = False
    levels: tuple[float, ...] = ()
    evidence: tuple[Evidence, ...] = ()

    def __post_init__(self) -> None:
        if not self.transports:
            raise MapError("A map needs at least one site.")
        check_levels(self.levels)
        for site, transport in self.transports.items():
            if transport.channels != site.channels:
                raise MapError(f"Site {site.key} has {site.channels} channels, its transport {transport.channels}.")
            if transport.bins not in (0, len(self.levels)):
                raise MapError(f"Site {site.key} has {transport.bins} bins, its map {len(self.levels)} noise levels.")
        if self.levels and not any(transport.bins for transport in self.transports.values()):
            raise MapError("The map has noise levels, but no site has bins for them.")

    def __repr__(self) -> str:
        title = f" {shorten(self.card.title, 60)!r}" if self.card.title else ""
        sites = "1 site" if len(self) == 1 else f"{len(self)} sites"
        how = [self.record.estimator, self.record.order, *([f"{len(self.levels)} noise levels"] if self.levels else [])]
        return f"<ActMap{title}: {sites} of {', '.join(self.components)}, {', '.join(how)}>"

    def __len__(self) -> int:
        return len(self.transports)

    def __getitem__(self, key: str) -> Transport:
        """The transport of the site with this key."""
        return self.transports[self.site(key)]

    def site(self, key: str) -> Site:
        """The site with this key.

        Raises:
            KeyError: no such site.
        """
        for site in self.transports:
            if site.key == key:
                return site
        raise KeyError(key)

    @property
    def components(self) -> tuple[str, ...]:
        """Components in the order in which their first site runs."""
        return tuple(dict.fromkeys(site.component for site in self.transports))

    @property
    def fallbacks(self) -> int:
        """Channels without a usable slope, over all sites."""
        return sum(transport.fallbacks for transport in self.transports.values())

    @property
    def calibrated(self) -> Calibration:
        """The calibration of the map.

        Raises:
            MapError: it has none.
        """
        if self.calibration is None:
            raise MapError(f"{self.called} is not calibrated; run Calibrate ACT Map on it, or turn off calibrated.")
        return self.calibration

    def on_even_scale(self, positions: Mapping[str, float]) -> tuple[ActMap, dict[str, float]]:
        """The map to apply, and its strengths, for positions on the even scale of the calibration.

        Args:
            positions: from -1 to 1, by component; see `Calibration.raw`.

        Returns:
            This map, in which components below 0 have the inverse transports if that is what a negative strength does,
            and the strength of each component. If only some components are inverted, it has no recommended range.

        Raises:
            MapError: the map is not calibrated, or a position is below 0 and it has no usable opposite.
        """
        found = self.calibrated
        raw = {component: found.raw(position) for component, position in positions.items()}
        back = {component for component, strength in raw.items() if strength < 0 and found.negative == "inverse"}
        if not back:
            return self, raw
        inverse = self.inverse()
        transports = {site: (inverse if site.component in back else self).transports[site] for site in self.transports}
        strengths = {component: abs(s) if component in back else s for component, s in raw.items()}
        ends = inverse.card.strength_range if all(c in back for c, s in raw.items() if s) else None
        edited = self.edited(transports, f"inverted in {', '.join(sorted(back))}")
        return replace(edited, card=replace(self.card, strength_range=ends)), strengths

    def for_any_architecture(self) -> ActMap:
        """The map with permission to steer a model of another architecture whose sites have the same names.

        Without it, `act_core.steer` refuses such a model. Maps that are made from this one keep it; its file does not.
        """
        return replace(self, any_architecture=True)

    def at(self, level: float) -> ActMap:
        """The map without bins that acts at a noise level: that of the nearest bin, of two equally near the noisier.

        Raises:
            MapError: the level is not a number from 0 to 1.
        """
        number = self.bin_at(level)
        if number is None:
            return self
        transports = {site: transport.bin(number) for site, transport in self.transports.items()}
        return replace(self.edited(transports, f"at noise level {self.levels[number]:g}"), levels=())

    def bin_at(self, level: float) -> int | None:
        """The number of the bin that acts at a noise level; None if the map has none.

        Raises:
            MapError: the level is not a number from 0 to 1.
        """
        level = as_level(level)
        return nearest(self.levels, level) if self.levels else None

    def restrict(self, *patterns: str) -> ActMap:
        """The map with only those sites that match one of the patterns (fnmatch on ``component/name``).

        Raises:
            MapError: no site matches.
        """
        kept = {site: t for site, t in self.transports.items() if matches(patterns, site.key)}
        if not kept:
            first = next(iter(self.transports))
            raise MapError(f"No site of the map matches {', '.join(patterns)}; the first is {first.key}.")
        return self.edited(kept, f"restricted to {', '.join(patterns)}")

    def scaled(self, strength: SupportsFloat) -> ActMap:
        """The map that at strength 1 does what this one does at `strength`.

        Raises:
            MapError: the strength is not a finite number.
        """
        number = as_strength(strength)
        scaled = self.edited({site: t.scaled(number) for site, t in self.transports.items()}, f"scaled by {number:g}")
        if ends := self.card.strength_range:
            # The recommended range keeps its meaning.
            low, high = sorted(end / number for end in ends) if number else ends
            scaled = replace(scaled, card=replace(self.card, strength_range=(low, high) if number else None))
        return replace(scaled, calibration=self.calibration and self.calibration.scaled(number))

    def inverse(self) -> ActMap:
        """The map from target to source, ``(a - beta) / omega`` per channel.

        A channel whose slope is too small to invert only shifts its mean back; ``fallbacks`` counts these. The inverse
        map has a recommended range only if the calibration of this map measured it.

        Raises:
            MapError: there is such a channel, but the map has no statistics to shift it back with; or the map is gated
                or a projection.
        """
        inverse = self.edited({site: t.inverse() for site, t in self.transports.items()}, "inverted")
        record = replace(
            inverse.record,
            source_prompts=self.record.target_prompts,
            target_prompts=self.record.source_prompts,
            source_count=self.record.target_count,
            target_count=self.record.source_count,
        )
        calibration = self.calibration and self.calibration.reversed()
        card = replace(self.card, strength_range=calibration and calibration.strength_range)
        return replace(inverse, record=record, card=card, calibration=calibration)

    def then(self, other: ActMap) -> ActMap:
        """The map that at strength 1 acts like this map followed by `other`.

        Raises:
            MapError: one of them has observed or gated support or is a projection, they describe a site differently, or
                their noise levels differ.
        """
        if self.levels != other.levels:
            raise MapError("The two maps have different noise levels; apply them one after the other.")
        spatial = any(site.layout == "spatial" for site in (*self.transports, *other.transports))
        if spatial and self.record.spatial != other.record.spatial:
            raise MapError("The two maps steer feature maps by different rules; apply them one after the other.")
        known = {site.key: site for site in self.transports}
        composed: dict[Site, Transport] = {}
        for site in sites_in_order((self, other)):
            if known.setdefault(site.key, site) != site:
                raise MapError(f"The two maps read site {site.key} differently; they cannot be composed.")
            both = [act_map.transports[site] for act_map in (self, other) if site in act_map.transports]
            composed[site] = both[0].then(both[1]) if len(both) > 1 else both[0]
        if not all(t.is_affine for t in composed.values()):
            raise MapError(
                "Only maps with unbounded support that are not projections can be composed into one; apply the two "
                "maps one after the other."
            )
        edited = self.edited(composed, f"then {other.card.title or 'another map'}")
        base = {**other.record.base, **self.record.base}
        record = replace(edited.record, base=base, merged_from=merged_titles((self, other)))
        return replace(edited, record=record, any_architecture=self.any_architecture or other.any_architecture)

    def joined(self, other: ActMap) -> ActMap:
        """One map with the sites of both, for two components that run one after the other.

        Raises:
            MapError: the maps share a site, steer feature maps by different rules, or have different noise levels.
        """
        if self.levels and other.levels and self.levels != other.levels:
            raise MapError("The two maps have different noise levels; apply them one after the other.")
        shared = {site.key for site in self.transports} & {site.key for site in other.transports}
        if shared:
            raise MapError(f"Both maps steer the site {min(shared)}; apply them one after the other.")
        spatial = any(site.layout == "spatial" for site in self.transports)
        if spatial and self.record.spatial != other.record.spatial:
            raise MapError("The two maps steer feature maps by different rules; apply them one after the other.")
        record = replace(
            other.record,
            walk="streamed" if "streamed" in (self.record.walk, other.record.walk) else "exact",
            base={**self.record.base, **other.record.base},
            patches=tuple(dict.fromkeys((*self.record.patches, *other.record.patches))),
            notes=(*self.record.notes, *other.record.notes),
        )
        transports = {**self.transports, **other.transports}
        permitted = self.any_architecture or other.any_architecture
        levels = self.levels or other.levels
        return ActMap(transports, record, self.card, any_architecture=permitted, levels=levels)

    def pruned(self, share: float, by: Unit = "sites") -> ActMap:
        """The smallest part of the map that carries a share of its effect, see `act_core.blending.prune`."""
        return prune(self, share, by)

    def difference(self, other: ActMap) -> dict[str, float]:
        """How much the coefficients of two maps differ by site key, see `act_core.comparison.difference`."""
        return difference(self, other)

    @property
    def called(self) -> str:
        """The map as the subject of an error message, with its title if it has one."""
        return f"The map {shorten(self.card.title, 60)!r}" if self.card.title else "The map"

    def edited(self, transports: Mapping[Site, Transport], edit: str) -> ActMap:
        """The map with other transports, whose effect has not been measured.

        Args:
            transports: by site, at least one.
            edit: what was done, for the record.
        """
        record = replace(self.record, edits=(*self.record.edits, edit))
        levels = self.levels if any(transport.bins for transport in transports.values()) else ()
        return replace(self, transports=transports, record=record, calibration=None, levels=levels, evidence=())
