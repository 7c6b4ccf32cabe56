"""The messages of the wire, by the names that aerie.proto gives them.

`messages.py` writes the descriptor and the stubs beside this file. The classes are made of the descriptor here: modules
that protoc writes run with the versions of protobuf alone that it names, these with any.
"""

from importlib import resources

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper


def _define() -> None:
    descriptor = resources.files(__name__).joinpath("aerie.binpb").read_bytes()
    [file] = descriptor_pb2.FileDescriptorSet.FromString(descriptor).file
    # A pool of its own, so that another version of the wire may be in the same process.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    for message in message_factory.GetMessageClassesForFiles([file.name], pool).values():
        message.__module__ = __name__
        globals()[message.DESCRIPTOR.name] = message
    for enum in pool.FindFileByName(file.name).enum_types_by_name.values():
        globals()[enum.name] = enum_type_wrapper.EnumTypeWrapper(enum)
        globals().update({value.name: value.number for value in enum.values})
    globals()["DESCRIPTOR"] = pool.FindFileByName(file.name)


_define()
