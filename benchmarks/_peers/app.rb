# What peers.py starts Puma with: its options for a graceful stop, and the work of app.py as a Rack application.

require "tempfile"

LARGE = "x" * (8 << 20)
FILE = Tempfile.new("peers")
FILE.write(LARGE)
FILE.flush

threads 4, 4
force_shutdown_after 19 # seconds; peers.py allows twenty
drain_on_shutdown
raise_exception_on_sigterm false

parts = lambda do |seconds|
  Enumerator.new do |body|
    10.times do |number|
      body << "part #{number}\n"
      sleep seconds / 10
    end
  end
end

app do |env|
  seconds = env["QUERY_STRING"].delete_prefix("s=").to_f
  body =
    case env["PATH_INFO"]
    when "/fast" then ["fast"]
    when "/slow" then sleep(seconds) && ["slow"]
    when "/stream" then parts.call(seconds)
    when "/upload" then [env["rack.input"].read.bytesize.to_s]
    when "/large" then [LARGE]
    when "/file" then File.open(FILE.path, "rb")
    when "/health" then ["ok"]
    end
  if body
    [200, { "Content-Type" => "text/plain" }, body]
  else
    [404, { "Content-Type" => "text/plain" }, ["not found"]]
  end
end
