"""The daemon: takes foresight and schedules over gRPC, plans ahead, streams plans to ranks."""

if __name__ != "foremoe.runtime":
    raise ImportError("import foremoe.runtime, not runtime")
