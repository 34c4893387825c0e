# Net::HTTP: object|calls URL N P: one object that is started again, or one for each visit.
require 'net/http'

how, url, one_by_one, at_once = ARGV
uri = URI(url)
make = lambda do
  http = Net::HTTP.new(uri.host, uri.port)
  http.use_ssl = true
  http.ca_file = ENV['CLIENT_CA']
  http
end
one = make.call
visit = -> { print((how == 'object' ? one : make.call).start { |http| http.get(uri.path).body }) }

one_by_one.to_i.times { visit.call }
Array.new(at_once.to_i) { Thread.new { visit.call } }.each(&:join)
