%% ssl of Erlang/OTP: default|auto URL N P. httpc is used as Elixir's and Erlang's programs do.
main([How, Url, OneByOne, AtOnce]) ->
    {ok, _} = application:ensure_all_started(inets),
    {ok, _} = application:ensure_all_started(ssl),
    Tls = [{verify, verify_peer}, {cacertfile, os:getenv("CLIENT_CA")}, {depth, 2},
           {customize_hostname_check, [{match_fun, public_key:pkix_verify_hostname_match_fun(https)}]}
           | case How of "auto" -> [{session_tickets, auto}]; "default" -> [] end],
    Visit = fun() ->
        {ok, {_, _, Body}} = httpc:request(get, {Url, []}, [{ssl, Tls}], [{body_format, binary}]),
        io:put_chars(Body)
    end,
    [Visit() || _ <- lists:seq(1, list_to_integer(OneByOne))],
    Me = self(),
    Pids = [spawn_link(fun() -> Visit(), Me ! {done, self()} end) || _ <- lists:seq(1, list_to_integer(AtOnce))],
    [receive {done, Pid} -> ok end || Pid <- Pids].
